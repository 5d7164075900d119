"""Where what is computed once is kept."""

from pathlib import Path

from flexlora.cache import cache_dir


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FLEXLORA_CACHE", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "flexlora"
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path / "ours"))
    assert cache_dir("tokens", "x") == tmp_path / "ours" / "tokens" / "x"
    assert not (tmp_path / "ours").exists()


def test_the_cache_is_in_the_home_folder_otherwise(monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "FLEXLORA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == Path(tmp_path) / ".cache" / "flexlora"
