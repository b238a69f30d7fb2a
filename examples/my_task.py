"""A task of your own. Its questions lie beside this file, in `my_task.jsonl`: one JSON object a line.

harness run --include examples/my_task.py --method eagle2 --task my_task
"""

from tasks import Task

TASK = Task(name="my_task", title="Travel notes", line="short questions for a traveller")
