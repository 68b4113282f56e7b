import re

import pytest


@pytest.mark.slow
def test_the_notebook_trains_a_new_robot_and_exports_it(execute, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device and the compiler's own settings, as on a laptop
    shown = execute("03_finetune").text
    assert "robots of the checkpoint: ['libero', 'yam', 'toy_arm']" in shown
    for name in ("flow", "language"):
        first, last = map(float, re.search(rf"{name} loss (\d+\.\d+) -> (\d+\.\d+)", shown).groups())
        assert last < 0.25 * first, name
    after, before = map(float, re.search(r"after: (0\.\d+) rad, before (0\.\d+) rad", shown).groups())
    assert after < 0.6 * before
    assert "same actions after export: True" in shown
