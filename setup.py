"""Puts the workflow into the wheel, for `vrm init`; everything else about the package stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WORKFLOW = ("Snakefile", "config.yaml", "workflow", "envs")
ROOT = Path(__file__).parent


class BuildWithWorkflow(build_py):
    """Copies the files of the workflow to `vrm/laid_out`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # `vrm init` finds them in the repository
            return
        target = Path(self.build_lib) / "vrm" / "laid_out"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in WORKFLOW:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target / name)


setup(cmdclass={"build_py": BuildWithWorkflow})
