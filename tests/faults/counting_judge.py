"""The world's judge, which also writes down what it bills: one line a reply, the request's key, to $VRM_BILLS.

Started by path as `judge.serve`, so that the harness can say of a run whether a judgment was paid for twice.
"""

import os
import sys

from vrm.world import judge_server


class Handler(judge_server._Handler):
    """A reply is billed when its 200 goes out, whether or not anybody is there to take it."""

    def _send(self, status, value):
        if status == 200 and self.command == "POST":
            key = self.headers.get("Idempotency-Key", "").rpartition("-")[0]
            descriptor = os.open(os.environ["VRM_BILLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.write(descriptor, f"{key}\n".encode())
            os.close(descriptor)
        super()._send(status, value)


if __name__ == "__main__":
    judge_server._Handler = Handler
    sys.exit(judge_server.main())
