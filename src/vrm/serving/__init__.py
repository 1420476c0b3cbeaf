"""A reward model over HTTP: `vrm serve`.

* `app`: the routes, the bounds of a request, the token, the measurements, starting and stopping
* `shapes`: what a request and an answer look like, in our own shape and in those that other trainers speak
* `rendered`: a conversation read back from the text that a chat template made of it
* `batching`: texts of several requests scored together
"""
