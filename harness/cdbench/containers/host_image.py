"""A small image out of the Python that runs this: no registry, no index, ten seconds.

In it: the interpreter, its standard library, the shared libraries that they link to (and those that wheels expect), a shell
and a few tools, one unprivileged user. The virtual environment is not in it; the runner mounts it read-only at its own path.
For machines that reach no registry, and for the tests. Same files on the machine, same image id: names are sorted, and owners,
modes and times are fixed.
"""

import hashlib
import importlib.util
import io
import json
import marshal
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from cdbench.errors import EnvironmentLacks

_TOOLS = ("sh", "env", "cat", "ls", "id", "mkdir", "rm", "sleep", "true", "false", "timeout")
_WHEELS_EXPECT = (
    "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1",
    "libm.so.6",
)  # fmt: skip
_LEFT_OUT = {
    "site-packages",
    "test",
    "tests",
    "__pycache__",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
}
_LOADER = "/lib64/ld-linux-x86-64.so.2"
_TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\ncdbench:x:10001:10001:cdbench:/tmp:/bin/sh\n",
    "/etc/group": "root:x:0:\ncdbench:x:10001:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_FOLDERS = {"/tmp": 0o1777, "/proc": 0o755, "/sys": 0o755, "/dev": 0o755, "/etc": 0o755}


def host_image(tag: str, labels: dict[str, str]) -> bytes:
    """A `docker load` archive with one layer.

    Raises:
        EnvironmentLacks: not Linux on x86-64, or `ldd` is missing.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64" or not shutil.which("ldd"):
        raise EnvironmentLacks("an image from this machine's Python needs Linux on x86-64 with ldd")
    layer = _layer(_collect())
    created = "1970-01-01T00:00:00Z"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {
            "Env": ["PATH=/usr/local/bin:/bin:/usr/bin", "LANG=C.UTF-8", f"LD_LIBRARY_PATH={sys.base_prefix}/lib"],
            "Cmd": ["python3"],
            "WorkingDir": "/tmp",
            "User": "10001:10001",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created": created, "created_by": "cdbench build --from-host"}],
    }
    text = json.dumps(config, sort_keys=True).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
    return _tar({name: text, "layer.tar": layer, "manifest.json": manifest})


def _collect() -> dict[str, Path]:
    """Path in the image -> file of this machine."""
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info[0]}.{sys.version_info[1]}"
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(prefix), "base": str(prefix)}))
    interpreter = prefix / "bin" / version
    files = {str(interpreter): interpreter.resolve(), _LOADER: Path(_LOADER).resolve()}
    linked = [interpreter.resolve()]
    for folder, inner, names in os.walk(stdlib):
        inner[:] = sorted(name for name in inner if name not in _LEFT_OUT and not name.startswith("config-"))
        for path in (Path(folder, name) for name in names if not name.endswith(".a")):
            files[str(path)] = path.resolve()
            linked += [path] if ".so" in path.name else []
    for tool in _TOOLS:
        if found := shutil.which(tool):
            files[f"/bin/{tool}"] = Path(found).resolve()
            linked.append(Path(found).resolve())
    for library in _known_libraries():
        files[str(library)] = library.resolve()
        linked.append(library)
    for library in _linked_by(linked):
        files[str(library)] = library.resolve()
    return files


def _known_libraries() -> list[Path]:
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    where: dict[str, Path] = {}
    for line in listed.splitlines():
        name, _, path = line.strip().partition(" => ")
        if "x86-64" in name:
            where.setdefault(name.split(" ", 1)[0], Path(path))
    return [where[name] for name in _WHEELS_EXPECT if name in where]


def _linked_by(files: list[Path]) -> list[Path]:
    """What the dynamic loader would open for these files."""
    found: list[Path] = []
    for start in range(0, len(files), 200):
        told = subprocess.run(["ldd", *map(str, files[start : start + 200])], capture_output=True, text=True).stdout
        for line in told.splitlines():
            path = line.rpartition("=> ")[2].strip().split(" (")[0]
            found += [Path(path)] if path.startswith("/") and not path.endswith(":") else []
    return sorted(set(found))


def _layer(files: dict[str, Path]) -> bytes:
    prefix, version = sys.base_prefix, f"python{sys.version_info[0]}.{sys.version_info[1]}"
    links = {f"{prefix}/bin/{name}": version for name in ("python", "python3")}
    if prefix != "/usr/local":
        links |= {f"/usr/local/bin/{name}": f"{prefix}/bin/{version}" for name in ("python", "python3")}
    links["/usr/bin/env"] = "/bin/env"
    folders = dict(_FOLDERS)
    for path in (*files, *_TEXTS, *links):
        for parent in Path(path).parents[:-1]:
            folders.setdefault(str(parent), 0o755)
        if path.endswith(".py"):
            folders.setdefault(f"{Path(path).parent}/__pycache__", 0o755)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(folders):
            _add(tar, path, kind=tarfile.DIRTYPE, mode=folders[path])
        for path in sorted({*files, *_TEXTS, *links}):
            if path in links:
                _add(tar, path, kind=tarfile.SYMTYPE, link=links[path])
            elif path in _TEXTS:
                _add(tar, path, _TEXTS[path].encode())
            else:
                data = files[path].read_bytes()
                _add(tar, path, data, mode=0o755 if os.access(files[path], os.X_OK) else 0o644)
                if path.endswith(".py"):
                    _add(tar, importlib.util.cache_from_source(path), _bytecode(path, data))
    return buffer.getvalue()


def _bytecode(path: str, source: bytes) -> bytes:
    """A .pyc without a time in it (PEP 552); without it a read-only container compiles the library at every start."""
    try:
        code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except SyntaxError:  # the standard library holds a few files that are wrong on purpose
        code = compile(b"", path, "exec")
    unchecked_hash = (1).to_bytes(4, "little")
    # Version 2: later ones write what happens to be shared or interned in this process.
    body = marshal.dumps(code, 2)
    return importlib.util.MAGIC_NUMBER + unchecked_hash + importlib.util.source_hash(source) + body


def _add(
    tar: tarfile.TarFile,
    path: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
) -> None:
    info = tarfile.TarInfo(path.lstrip("/"))
    info.type, info.mode, info.mtime, info.linkname, info.size = kind, mode, 0, link, len(data)
    tar.addfile(info, io.BytesIO(data) if data else None)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            _add(tar, name, data)
    return buffer.getvalue()
