"""The page that puts every number and claim of the paper beside this run."""
