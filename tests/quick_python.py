"""Python commands in processes of their own that start in a second.

A server imports the heavy libraries once, but nothing of elm_interp, and forks for each command. So a command finds
elm_interp, its plug-ins and its environment as a new interpreter would.

    with server() as run:
        code, out, err = run(["-m", "elm_interp.cli", "list"], cwd=folder, env=os.environ)
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HEAVY = (
    "accelerate", "pandas", "peft", "pyarrow", "seaborn", "sklearn.linear_model", "transformers.modeling_utils", "tyro",
)  # fmt: skip


@contextmanager
def server() -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Inside the context, a function that runs `python WORDS` and returns exit code, output and errors."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(words: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> tuple[int, str, str]:
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder) / name) for name in ("out", "err")]
            request = {"words": list(words), "cwd": str(cwd), "env": dict(env), "files": files}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            out, err = (Path(file).read_text(encoding="utf-8", errors="replace") for file in files)
            return code, out, err

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait()


def main() -> None:
    """Import, then answer one request a line."""
    for name in HEAVY:
        __import__(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _become(request)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _become(request: dict) -> None:
    """Run a command in this process, as `python WORDS` does, and end."""
    code = 1
    try:
        for number, file in enumerate(request["files"], 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.path[:0] = [request["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        kind, what, *rest = request["words"]
        sys.argv = [what, *rest]
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "-c", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
