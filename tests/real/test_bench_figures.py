"""What scripts/bench keeps of a run says nothing of where it ran."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benching import report
from benching.figures import Figures


def made() -> Figures:
    figures = Figures()
    figures.add("stall", "8 ext4", "virtagentd", "ms", [60, 50, 70])
    figures.add("stall", "8 ext4", "qemu-ga", "ms", [600])
    figures.add("stall", "8 xfs", "virtagentd", "ms", [0.25])
    return figures


def test_what_is_kept_names_no_host_and_no_path(tmp_path: Path) -> None:
    kept = tmp_path / "figures.json"
    made().keep(kept, {"rounds": 3}, [])
    text = kept.read_text(encoding="utf-8")
    assert "/" not in text.replace("qemu-ga / virtagentd", "")
    assert set(json.loads(text)["machine"]) == {
        *["cores", "processor", "memory_gib", "kernel", "python", "load", "qemu-ga", "util-linux"]
    }
    later = Figures()
    later.add("memory", "idle", "virtagentd", "MiB", [20])
    later.keep(kept, {"rounds": 3}, [])
    figures, about = Figures.load(kept)
    assert figures.parts() == ["stall", "memory"]
    assert about["settings"] == {"rounds": 3}
    assert "### Memory\n" in report.section(figures, about)
    later.keep(kept, {"rounds": 9}, ["another disk"], aside=True)
    assert Figures.load(kept)[1] == about, "what is measured on another disk is added, and says nothing of the rest"
