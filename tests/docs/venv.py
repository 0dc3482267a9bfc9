"""A virtual environment like the one that README's install command makes, without a download."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(directory: Path) -> None:
    """Create `.venv` in the directory: these sources, the packages of this Python, and the command `kingtask`."""
    place = directory / ".venv"
    venv.create(place, symlinks=True)
    packages = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "sources.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    script = place / "bin" / "kingtask"
    script.write_text(f"#!{place}/bin/python\nimport sys\nfrom kingtask.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
