"""What only a GPU can show, in stages with limits. One command, one file to send: `make gpu-check`.

    python -m tests.gpu OUT            # on a machine with a GPU: about six minutes of an H100 or H200, by estimate
    python -m tests.gpu OUT --dry      # on a CPU with toy shapes: are the stages themselves sound?
    python -m tests.gpu OUT --stage correct

Every stage is a module with `run(ground)`, in a process of its own, killed at its limit. It writes what it learns to
OUT/results.jsonl as it learns it, so that a limit loses nothing; OUT/report.md is for people.
"""
