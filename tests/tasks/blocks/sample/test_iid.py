from tasks.blocks import sample
from tests.support.models import Unsteady
from tests.support.work import bound, prompts, work


def test_a_request_that_failed_is_no_candidate_and_the_others_keep_their_draws():
    table = prompts("add 2 3", "add 1 1")
    model = Unsteady(lambda prompt, draw: None if (prompt, draw) == ("add 2 3", 1) else f"{draw}")
    draw = bound(sample.BLOCKS, "iid_k", template="answer", n=3, temperature=1.0, top_p=1.0, max_new_tokens=4)
    found = draw(work(table, model, "sample")).candidates
    first, second = table["prompt_id"]
    assert found.select("prompt_id", "draw", "response").rows() == [
        (first, 0, "0"), (first, 2, "2"), (second, 0, "0"), (second, 1, "1"), (second, 2, "2"),
    ]  # fmt: skip
    assert set(found["finish_reason"]) == {"stop"}
