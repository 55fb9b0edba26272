"""Users of the package are checked as strictly as the package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

API = Path(__file__).with_name("api.py")
ROOT = API.parents[2]


def test_a_consumer_passes_mypy_and_pyright_in_strict_mode(tmp_path):
    """Both accept the file of uses, find each mistake in it, and need no ignore but those."""
    config = tmp_path / "pyrightconfig.json"
    shutil.copy(API, tmp_path)  # it looks only below its configuration
    settings = {"include": [API.name], "typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error",
                "enableTypeIgnoreComments": False, "extraPaths": [str(ROOT)], "pythonVersion": "3.10"}  # fmt: skip
    config.write_text(json.dumps(settings))
    pyright = Path(sysconfig.get_path("scripts")) / "pyright"
    checks = {
        "mypy": [
            sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--python-version", "3.10",
            "--config-file", "", "--cache-dir", str(tmp_path / "mypy"), "--follow-imports", "silent", str(API),
        ],
        "pyright": [str(pyright), "--pythonpath", sys.executable, "-p", str(config), "--outputjson"],
    }  # fmt: skip
    running = {
        name: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in checks.items()
    }
    said = {name: process.communicate()[0] for name, process in running.items()}
    failed = {name: said[name] for name, process in running.items() if process.returncode}
    assert not failed, "\n".join(failed.values())
    assert "no issues found in 1 source file" in said["mypy"]
    summary = json.loads(said["pyright"])["summary"]
    assert (summary["filesAnalyzed"], summary["errorCount"], summary["warningCount"]) == (1, 0, 0)
