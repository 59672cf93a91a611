"""The hash of the code that a recording came from: it sees what counts, and nothing else."""

from __future__ import annotations

import pytest

from book.recordings.origin import chapter_files, fingerprint, made_by

PLAIN = '"""A."""\nK = 1\n\ndef f(x):\n    """F."""\n    return x + K\n'
DRESSED = '"""B."""\nK  =  1  # why\n\n\ndef f(x):\n    """G."""\n    return (x + K)\n'
LONGER = PLAIN + "\ndef g():\n    return 2\n"
OTHER_CONSTANT = PLAIN.replace("K = 1", "K = 2")
OTHER_FUNCTION = PLAIN.replace("x + K", "x - K")


@pytest.fixture
def hashed(tmp_path):
    def of(text, code):
        (tmp_path / "a.py").write_text(text)
        return fingerprint(code, tmp_path)

    return of


def test_a_file_is_seen_without_its_clothes(hashed):
    whole = [hashed(text, ["a.py"]) for text in (PLAIN, DRESSED, LONGER, OTHER_CONSTANT)]
    assert whole[0] == whole[1]
    assert len(set(whole)) == 3


def test_only_the_definitions_that_are_named_count(hashed):
    code = {"a.py": ("K", "f")}
    named = [hashed(t, code) for t in (PLAIN, DRESSED, LONGER, OTHER_CONSTANT, OTHER_FUNCTION)]
    assert named[0] == named[1] == named[2]
    assert len(set(named)) == 3
    assert hashed(PLAIN, {"a.py": ("f",)}) == hashed(OTHER_CONSTANT, {"a.py": ("f",)})


def test_a_definition_that_is_gone_is_missed(hashed):
    with pytest.raises(LookupError, match=r"a\.py does not define gone"):
        hashed(PLAIN, {"a.py": ("f", "gone")})


def test_a_record_names_code_commit_machine_and_day():
    found = made_by(["book/recordings/origin.py"], "two cores")
    assert set(found) == {"commit", "code", "machine", "versions", "date"}
    assert found["machine"].endswith(", two cores")
    assert found["code"] == fingerprint(["book/recordings/origin.py"])


def test_a_chapters_files_are_found_or_missed(tmp_path):
    (tmp_path / "pkg" / "two").mkdir(parents=True)
    for name in ("pkg/one.py", "pkg/two/b.py", "pkg/two/a.py"):
        (tmp_path / name).write_text("")
    assert chapter_files("pkg", "one", tmp_path) == ["pkg/one.py"]
    assert chapter_files("pkg", "two", tmp_path) == ["pkg/two/a.py", "pkg/two/b.py"]
    with pytest.raises(LookupError, match="no module three"):
        chapter_files("pkg", "three", tmp_path)
