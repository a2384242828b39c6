"""Measures how closely every layout's models agree with PyTorch's, and writes docs/interop.md.

    python tools/interop_table.py [--write]

Needs torch, diffusers and transformers.
"""

import argparse
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
DOC = ROOT / "docs" / "interop.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def main() -> None:
    """Prints the table, or puts it where the documentation has it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write it into docs/interop.md")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.interop.peers import PEERS

    lines = [
        "| layout | against | output | gradient | in | out, bit-equal |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for layout, (peer, measure) in PEERS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = measure(pathlib.Path(folder))
        back = "yes" if found.round_trip else "no"
        gradient = "not wanted" if found.gradient is None else f"{found.gradient:.1e}"
        lines.append(f"| {layout} | {peer} | {found.output:.1e} | {gradient} | yes | {back} |")
        print(lines[-1], flush=True)
    if options.write:
        text = DOC.read_text()
        start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
        DOC.write_text("\n".join([text[:start], *lines, text[stop:]]))


if __name__ == "__main__":
    main()
