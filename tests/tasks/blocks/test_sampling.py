from tasks.blocks.sample import iid
from tests.support import Adding, Unsteady, prompts


def test_a_request_that_failed_is_no_candidate_and_the_others_keep_their_draws():
    table = prompts("add 2 3", "add 1 1")
    model = Unsteady(lambda prompt, draw: None if (prompt, draw) == ("add 2 3", 1) else f"{draw}")
    options = iid.IidK(n=3, temperature=1.0, top_p=1.0, max_new_tokens=4)
    found = iid.iid_k(table, Adding(), model, 1, "iid", options)
    first, second = table["prompt_id"]
    assert found.select("prompt_id", "draw", "response").rows() == [
        (first, 0, "0"), (first, 2, "2"), (second, 0, "0"), (second, 1, "1"), (second, 2, "2"),
    ]  # fmt: skip
    assert set(found["finish_reason"]) == {"stop"}
