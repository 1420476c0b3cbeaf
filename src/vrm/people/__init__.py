"""What people do with one file and one model, without a workflow: train, score, explain, export."""
