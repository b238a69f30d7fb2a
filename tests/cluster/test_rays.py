"""What is told of Ray's own errors."""

from __future__ import annotations

import pytest

from harness.cluster.rays import why_lost


class ActorUnavailableError(Exception):
    """As Ray has it."""


HEAD = "The actor died unexpectedly before finishing this task.\n\tclass_name: Host\n\tpid: 13973\n\tip: 127.0.0.1\n"
CREATED = "The actor died because of an error raised in its creation task, \x1b[36mray::Host.__init__()\x1b[39m (pid=1, ip=::1)\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception(HEAD + "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
                   "detail: ... Some common causes include: (1) the OOM killer, (2) ray stop"), "its worker process has died"),
        (Exception(HEAD + "The actor is dead because its node has died. Node Id: 0c1"), "its node has died"),
        (Exception(HEAD + "The actor is dead because it was killed by `ray.kill`.\nThe actor never ran"),
         "it was killed by `ray.kill`"),
        (Exception("Task was killed due to the node running low on memory.\nMemory on the node (IP: ::1) was 15.9GB"),
         "its node ran low on memory, and Ray ended it"),
        (ActorUnavailableError("The actor 82db is unavailable: Socket closed. The task may or may not have been executed"),
         "nothing comes from it any more"),
        (Exception(CREATED + "    ^^^^\nRuntimeError: The actor with name Host failed to import\n\n  File \"x.py\", line 38\n"
                   "ModuleNotFoundError: No module named 'harness'"), "ModuleNotFoundError: No module named 'harness'"),
        (Exception(CREATED), "it could not be made"),
        (ValueError("something else\nand more"), "ValueError: something else"),
    ],
    ids=["killed", "node", "ray.kill", "memory", "unavailable", "import", "made", "other"],
)  # fmt: skip
def test_why_a_worker_is_lost_is_a_few_words(error: Exception, words: str) -> None:
    assert why_lost(error) == words
