"""What the server tells of plans and passes."""

import json

from offload_runtime.generation.decode import Step
from offload_runtime.serve.views import activity_view, plan_view, step_view
from offload_runtime.speculation.target import PassProgress
from sequoia_tree.tree import Tree
from tests.fakes.page.page_server import PLAN


def test_a_pass_is_told_with_its_tree() -> None:
    tree, pieces = Tree([-1, 0, 0, 2]), ("Hel", "lo", "!")
    step = Step(
        [5, 6, 7], 3, 2, 0.1, 0.9, 10**9, text="Hello!", method="sequoia", tree=tree, path=(2, 3), pieces=pieces
    )
    assert json.loads(json.dumps(step_view(step))) == {
        "drafted": 3,
        "accepted": 2,
        "tokens": 3,
        "draft_seconds": 0.1,
        "target_seconds": 0.9,
        "streamed_bytes": 10**9,
        "read_tokens": 0,
        "method": "sequoia",
        "pieces": ["Hel", "lo", "!"],
        "tree": {"parents": [-1, 0, 0, 2], "accepted": [2, 3]},
    }
    assert step_view(Step([], 0, 0, 0.0, 0.0, 0, "interrupted"))["tree"] is None


def test_what_happens_right_now_is_told() -> None:
    progress = PassProgress(tokens=900, passes=2, layers=160, layers_begun=41, seconds=5.0)
    assert activity_view(progress, 3, 1, 4) == {
        "running": 3,
        "waiting": 1,
        "parallel": 4,
        "pass": {
            "tokens": 900,
            "passes": 2,
            "layers": 160,
            "layers_begun": 41,
            "seconds": 5.0,
            "share": 0.25,
            "seconds_left": 15.0,
        },
    }
    assert activity_view(None, 0, 0, 1)["pass"] is None


def test_a_plan_is_told_without_what_is_private() -> None:
    told = json.loads(json.dumps(plan_view(PLAN)))
    assert told["model"] == PLAN.model and len(told["items"]) == len(PLAN.items)
    assert "Each pass streams 35.6 GB from memory." in told["summary"]
    assert "device_name" in told["machine"] and told["machine"].keys() <= vars(PLAN.machine).keys()
    assert not {"uuid", "driver", "no_kernels", "note", "host_available"} & told["machine"].keys()
    assert "/" not in json.dumps(told).replace("tokens/s", "")
