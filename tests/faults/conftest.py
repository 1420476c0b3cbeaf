"""Places that fail on demand, and the table of what was seen: $VRM_FAULTS names a JSON lines file for it."""

import json
import os
import subprocess

import pytest
from runs import DEFAULT, SMOKE


@pytest.fixture
def seen():
    """`seen(fault, saw=..., lost=..., remedy=...)`: one row of the fault table, written once the test knows it."""

    def note(fault, *, saw, lost="nothing", remedy):
        words = next((line.strip() for line in reversed(saw.splitlines()) if line.strip()), saw)
        if path := os.environ.get("VRM_FAULTS"):
            with open(path, "a") as file:
                file.write(json.dumps({"fault": fault, "saw": words, "lost": lost, "remedy": remedy}) + "\n")

    return note


class Disk:
    """A small file system in memory at `path`."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self._run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path)

    def again(self, *options):
        """Mount it with other options: `size=64k`, `ro`, `rw`."""
        self._run("mount", "-o", ",".join(("remount", *options)), self.path)

    @staticmethod
    def _run(*command):
        subprocess.run([str(part) for part in command], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """A `Disk` of 16 MiB; tests skip where nothing can be mounted."""
    try:
        found = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here, which takes root on Linux: {error}")
    yield found
    subprocess.run(["umount", "-l", str(found.path)], check=False)


@pytest.fixture(scope="session")
def micro(tmp_path_factory):
    """Configuration files of a world that is made in a second."""
    path = tmp_path_factory.mktemp("micro") / "micro.yaml"
    path.write_text("world: {prompts: 60, evaluation_prompts: 8, pairs_per_subset: 1}\n")
    return DEFAULT, SMOKE, path
