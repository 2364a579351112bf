"""Takes the README's picture: the first screen of a report, as a browser shows it.

    python docs/screenshot.py                                     # docs/pictures/report.png, from the page below
    python docs/screenshot.py --page PAGE --output FILE.png

It needs chromium (apt install chromium). `generate.py` does not call it: a browser draws letters differently on each machine,
so a picture cannot be compared byte for byte. Run it again after the page of the report has changed:

    qkverify report reports/amd-epyc-2-cores && python docs/screenshot.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "reports" / "amd-epyc-2-cores" / "index.html"
PICTURE = ROOT / "docs" / "pictures" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--headless",
    "--no-sandbox",  # chromium has none where it runs as root, in a container
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)
WIDTH, HEIGHT = 1200, 900  # pixels: the first screen of a laptop, and the first rows of its table
LARGEST = 200_000  # bytes; every clone of the repository holds the picture
PATIENCE = 120  # seconds


def take(page: Path, picture: Path) -> None:
    """Writes the first screen of `page` to `picture`, WIDTH by HEIGHT pixels. Raises SystemExit with the reason if it cannot."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser here: one of {', '.join(BROWSERS)} is needed (apt install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / "screen.png"
        command = [
            browser,
            *SWITCHES,
            f"--user-data-dir={profile}/browser",
            f"--window-size={WIDTH},{HEIGHT}",
        ]
        command += [f"--screenshot={made}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if not made.is_file():
            sys.exit(f"{browser} took no picture of {page}:\n{done.stderr}")
        if made.stat().st_size > LARGEST:
            sys.exit(f"the picture has {made.stat().st_size:,} bytes; at most {LARGEST:,} are committed")
        shutil.copyfile(made, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="the report's index.html")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the PNG file to write")
    arguments = parser.parse_args()
    take(arguments.page, arguments.output)


if __name__ == "__main__":
    main()
