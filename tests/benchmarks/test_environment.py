import subprocess
import types

import jax

from benchmarks import environment
from benchmarks.environment import Environment


def test_tells_what_runs():
    now = Environment.now()
    assert now.device not in ("", "cpu")
    assert {"python", "jax", "jaxlib", "butterjax"} <= set(now.versions)
    assert now.cache_bytes is None or now.cache_bytes > 2**15


def test_cache_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_CPU_CACHES", tmp_path)
    assert environment._cache_bytes() is None
    for index, size in enumerate(["48K", "2048K", "32M"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert environment._cache_bytes() == 32 * 2**20


def test_cache_of_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert environment._cache_bytes() > 126 * 2**20 - 1


def test_memory(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(environment, "_CGROUP_LIMIT", limit)
    physical = environment.memory_bytes()
    assert physical > 2**28
    limit.write_text("max\n")
    assert environment.memory_bytes() == physical
    limit.write_text("4096\n")
    assert environment.memory_bytes() == 4096
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 80})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert environment.memory_bytes() == 80


def test_commit_tells_changes_apart(tmp_path, monkeypatch):
    file = tmp_path / "benchmarks" / "environment.py"
    file.parent.mkdir()
    monkeypatch.setattr(environment, "__file__", str(file))
    assert environment._commit() is None

    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *name, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    file.write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = environment._commit()
    assert len(clean) == 40
    file.write_text("two")
    changed = environment._commit()
    assert changed == environment._commit()
    (tmp_path / "new.py").write_text("three")
    added = environment._commit()
    (tmp_path / "new.py").write_text("four")
    assert len({clean, changed, added, environment._commit()}) == 4
    assert changed.startswith(f"{clean}+")
    (tmp_path / "new.py").unlink()
    file.write_text("one")
    assert environment._commit() == clean
