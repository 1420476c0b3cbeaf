"""A reward model over HTTP: `vrm serve`.

* `app`: the bounds of a request, texts of several requests scored together, the routes, the token, starting, stopping
* `shapes`: what a request and an answer look like, in our own shape and in those that other trainers speak
"""
