"""The losses, against numbers worked out by hand and against TRL's own; the plan; the learning-rate curve."""

import math

import numpy as np
import pytest
import torch
from trl import DPOConfig, DPOTrainer

from tasks.core.errors import StageFailed
from tasks.core.models import tokenizers
from tasks.core.models import weights as models_weights
from tasks.core.training import batches, encoding, losses, rates, trainers
from tasks.core.training.options import DpoOptions, KtoOptions, SftOptions
from tasks.core.training.request import Fit, Reference
from tests.support import tiny

torch.set_num_threads(1)

WORDS = [str(n) for n in range(10)]
TOKENIZER = tokenizers.make_tokenizer([*WORDS, ":"], [], 300)
ARCHITECTURE = {**tiny.ARCHITECTURE, "initializer_range": 0.5}
STEPS = {"steps": 2, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
OPTIONS = {"sft": SftOptions(**{**tiny.SFT, **STEPS}), "dpo": DpoOptions(**{**tiny.DPO, **STEPS, "beta": 0.3})}
PROMPTS = ["1 2 :", "3 :", "4 5 6 :"]
CHOSEN = ["2 1", "3", "6 5 4 1 1"]
REJECTED = ["2 2 2 2", "4", "6"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("trainers")
    for seed in (0, 1):
        models_weights.build(ARCHITECTURE, TOKENIZER, seed, path / str(seed))
    return path


def load(folder):
    return models_weights.load(folder, torch.float32)


def trainer_of(kind, model, folder, source, options=None):
    request = Fit(kind, folder, folder / "out", folder, (source,), options or OPTIONS[kind], 0)
    return trainers.trainer_for(request, model, TOKENIZER, trainers.arguments_for(request))


def encode(prompts, replies):
    return encoding.encode(TOKENIZER, list(map(tiny.user, prompts)), list(map(tiny.reply, replies)), prompts, 64)


def by_hand(model, rows):
    """Log-probability of every completion token, one row at a time and without padding."""
    found = []
    for start, length, prompt in zip(rows.starts, rows.lengths, rows.prompts, strict=True):
        ids = torch.from_numpy(rows.tokens[start : start + length])[None]
        with torch.no_grad():
            logps = model(ids).logits[0].log_softmax(-1)
        found.append(torch.stack([logps[t - 1, ids[0, t]] for t in range(prompt, length)]))
    return found


def test_the_sft_loss_is_the_weighted_mean_over_completion_tokens(folders):
    rows = encode(PROMPTS, CHOSEN)
    weights = np.array([1.0, 0.0, 0.5])
    source = batches.SftBatches(rows, weights, np.array([[0, 1, 2], [2, 2, 0]]), 1.0)
    model = load(folders / "0")
    logps = by_hand(model, rows)
    trainer = trainer_of("sft", model, folders / "c", source)
    for step, members in enumerate(source.plan):
        loss = sum(trainer.compute_loss(model, losses.tensors(group)) for group in source.step(step))
        above = sum(weights[i] * -logps[i].sum() for i in members)
        below = sum(weights[i] * len(logps[i]) for i in members)
        assert loss.item() == pytest.approx(float(above / below), rel=1e-5)


def test_a_row_of_weight_zero_changes_no_gradient(folders):
    def gradient(replies, weights):
        model = load(folders / "0")
        source = batches.SftBatches(encode(PROMPTS, replies), np.array(weights), np.array([[0, 1, 2]]), 1.0)
        trainer = trainer_of("sft", model, folders / "c", source)
        sum(trainer.compute_loss(model, losses.tensors(group)) for group in source.step(0)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.allclose(
        gradient(CHOSEN, [1.0, 2.0, 0.0]), gradient([*CHOSEN[:2], "9 9 9"], [1.0, 2.0, 0.0]), atol=1e-6
    )
    assert not gradient(CHOSEN, [0.0, 0.0, 0.0]).any()


def test_dpo_losses_by_hand():
    logps, reference = torch.tensor([-2.0, -6.0]), torch.tensor([-3.0, -4.0])
    lengths = torch.tensor([2.0, 4.0])

    def loss(kind, smoothing, nll):
        options = OPTIONS["dpo"].model_copy(update={"loss": kind, "beta": 0.5, "nll": nll})
        return float(losses.dpo_losses(logps, reference, lengths, torch.tensor([smoothing]), torch.zeros(1), options))

    # ratios +1 and -2, so d = 3, beta * d = 1.5
    right, wrong = math.log1p(math.exp(-1.5)), math.log1p(math.exp(1.5))
    assert loss("sigmoid", 0.0, 0.0) == pytest.approx(right)
    assert loss("sigmoid", 0.25, 0.0) == pytest.approx(0.75 * right + 0.25 * wrong)
    assert loss("sigmoid", 0.0, 0.1) == pytest.approx(right + 0.1 * 2.0 / 2)
    # averaged ratios 0.5 and -0.5, so d = 1; 1 / (2 beta) = 1
    assert loss("ipo", 0.0, 0.0) == pytest.approx(0.0)
    assert loss("ipo", 0.5, 0.0) == pytest.approx(0.5 * 4.0)


def test_smoothing_of_a_half_does_not_know_chosen_from_rejected():
    logps, reference, lengths = torch.tensor([-2.0, -6.0]), torch.tensor([-3.0, -4.0]), torch.tensor([2.0, 4.0])
    half = torch.tensor([0.5])
    for kind in ("sigmoid", "ipo"):
        options = OPTIONS["dpo"].model_copy(update={"loss": kind, "beta": 0.5})
        one = losses.dpo_losses(logps, reference, lengths, half, torch.zeros(1), options)
        other = losses.dpo_losses(logps.flip(0), reference.flip(0), lengths.flip(0), half, torch.zeros(1), options)
        assert torch.allclose(one, other)


def pair_batches(folders, weights):
    rows = encode(PROMPTS * 2, CHOSEN + REJECTED)
    reference = losses.reference_logps(Reference(folders / "1", rows, "float32"), lambda done, total: None)
    return batches.PairBatches(rows, np.array(weights), np.zeros(3), np.zeros(3), reference, np.array([[0, 1, 2]]))


def test_reference_log_probabilities(folders):
    rows = encode(PROMPTS * 2, CHOSEN + REJECTED)
    alone = [float(logps.sum()) for logps in by_hand(load(folders / "1"), rows)]
    found = losses.reference_logps(Reference(folders / "1", rows, "float32"), lambda done, total: None)
    assert found == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_weights_of_one_give_the_loss_of_trl(folders, tmp_path, kind):
    from datasets import Dataset

    options = OPTIONS["dpo"].model_copy(update={"loss": kind})
    source = pair_batches(folders, [1.0, 1.0, 1.0])
    model = load(folders / "0")
    ours = trainer_of("dpo", model, tmp_path, source, options)
    loss = sum(ours.compute_loss(model, losses.tensors(group)) for group in source.step(0))

    def row(i):
        begin, end, prompt = (
            source.rows.starts[i],
            source.rows.starts[i] + source.rows.lengths[i],
            source.rows.prompts[i],
        )
        return source.rows.tokens[begin : begin + prompt].tolist(), source.rows.tokens[begin + prompt : end].tolist()

    data = [{"prompt_ids": row(i)[0], "chosen_ids": row(i)[1], "rejected_ids": row(i + 3)[1]} for i in range(3)]

    class Prepared(DPOTrainer):
        def _prepare_dataset(self, dataset, *arguments):
            return dataset

    arguments = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, loss_type=[kind], use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, remove_unused_columns=False,
    )  # fmt: skip
    theirs = Prepared(
        model=load(folders / "0"),
        ref_model=load(folders / "1"),
        args=arguments,
        train_dataset=Dataset.from_list(data),
        processing_class=TOKENIZER,
    )
    expected = DPOTrainer._compute_loss(theirs, theirs.model, theirs.data_collator(data), False)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_pairs_are_weighted_and_a_weight_of_zero_has_no_gradient(folders, tmp_path):
    def loss_and_gradient(weights):
        model = load(folders / "0")
        source = pair_batches(folders, weights)
        trainer = trainer_of("dpo", model, tmp_path, source)
        loss = sum(trainer.compute_loss(model, losses.tensors(group)) for group in source.step(0))
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    alone = [loss_and_gradient([float(i == k) for k in range(3)])[0] for i in range(3)]
    assert loss_and_gradient([0.5, 0.0, 2.0])[0] == pytest.approx(0.5 * alone[0] + 2 * alone[2], rel=1e-5)
    assert not loss_and_gradient([0.0, 0.0, 0.0])[1].any()


def test_every_step_takes_the_mixture_and_epochs_do_not_repeat_early():
    parts = ["a"] * 7 + ["b"] * 2 + ["c"] * 3
    steps = batches.plan(parts, {"a": 3, "b": 4, "c": 0}, 14, 5, "mixture")
    drawn = np.array(parts, dtype=object)[steps]
    assert steps.shape == (14, 7)
    assert ((drawn == "a").sum(axis=1) == 3).all()
    assert ((drawn == "b").sum(axis=1) == 4).all()
    walked = steps[:, :3].flatten()
    assert all(sorted(walked[k : k + 7]) == list(range(7)) for k in range(0, 42, 7))
    assert np.array_equal(steps, batches.plan(parts, {"b": 4, "a": 3, "c": 0}, 14, 5, "mixture"))
    assert not np.array_equal(steps, batches.plan(parts, {"a": 3, "b": 4, "c": 0}, 14, 6, "mixture"))
    with pytest.raises(StageFailed, match="mixture asks for 1 rows of 'd'"):
        batches.plan(parts, {"d": 1}, 2, 0, "mixture")


def test_groups_hold_every_row_once_and_are_bounded():
    lengths = np.random.default_rng(0).integers(1, 3000, 400)
    found = batches.groups(lengths)
    assert sorted(np.concatenate(found)) == list(range(400))
    assert all(len(g) * lengths[g].max() <= batches.PASS_TOKENS or len(g) == 1 for g in found)


def test_rows_too_long_and_templates_that_cannot_be_cut():
    with pytest.raises(StageFailed, match="row 1 2 : has 6 tokens; the model holds 4"):
        encoding.encode(TOKENIZER, [tiny.user("1 2 :")], [tiny.reply("2 1")], ["1 2 :"], 4)
    odd = tokenizers.make_tokenizer(WORDS, [], 300)
    odd.chat_template = "{{ messages | length }} {{ messages[0]['content'] }}"
    with pytest.raises(StageFailed, match="cannot be told apart"):
        encoding.encode(odd, [tiny.user("1 2")], [tiny.reply("2 1")], ["r"], 64)


def test_the_completion_ends_where_generation_would():
    chat = tokenizers.make_tokenizer(WORDS, [], 300)
    chat.chat_template = "{% for m in messages %}{{ m['content'] + ' ' + eos_token + ' 9 ' }}{% endfor %}"
    rows = encoding.encode(chat, [tiny.user("1 2")], [tiny.reply("3")], ["r"], 64)
    words = chat.convert_ids_to_tokens(rows.tokens[rows.prompts[0] :])
    assert words == ["3", "<eos>"]


def test_schedules_at_their_corners():
    for kind in ("cosine", "linear", "constant", "wsd"):
        share = rates.schedule(kind, 100, 10, 0.1)
        assert share(0) == pytest.approx(0.1)
        assert share(9) == share(10) == 1.0
        assert share(100) == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert rates.schedule("wsd", 100, 10, 0.1)(69) == 1.0
    assert rates.schedule("wsd", 100, 10, 0.1)(85) == pytest.approx(0.55)
    assert rates.schedule("cosine", 100, 10, 0.1)(55) == pytest.approx(0.55)


def test_packed_rows_are_told_apart(folders):
    rows = encode(PROMPTS, CHOSEN)
    assert sorted(np.concatenate(batches.packs(rows.lengths, 8)).tolist()) == [0, 1, 2]
    assert [len(members) for members in batches.packs(np.array([5, 3, 3, 2, 9]), 8)] == [1, 2, 2]
    group = batches.pack(rows, np.array([2, 0]))
    lengths = rows.lengths[[2, 0]].tolist()
    assert group["position_ids"].tolist() == [[*range(lengths[0]), *range(lengths[1])]]
    model = load(folders / "0")
    found = losses.log_probabilities(model, losses.Head(model), losses.tensors(group)).detach()
    assert torch.allclose(found, torch.cat([by_hand(model, rows)[i] for i in (2, 0)]), atol=1e-5)
    trainers.check_packing(model)


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_models_that_carry_on_from_row_to_row_are_not_packed(tmp_path, kind):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1}
    extra = {
        "mamba": {"state_size": 4},
        "lfm2": {
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "layer_types": ["conv"],
        },
    }[kind]
    models_weights.build({"model_type": kind, **sizes, **extra}, TOKENIZER, 0, tmp_path)
    with pytest.raises(StageFailed, match=f"packing: in a {kind} model packed rows see one another"):
        trainers.check_packing(load(tmp_path))


def test_the_shares_of_several_processes_are_the_step(folders):
    rows = encode(PROMPTS * 3, CHOSEN * 3)
    for packed in (False, True):
        source = batches.SftBatches(rows, np.linspace(0.5, 1.5, 9), np.array([[8, 1, 2, 3, 4]]), 1.0, 12, packed)
        shares = [source.step(0, rank, 3) for rank in range(3)]
        assert len({len(share) for share in shares}) == 1  # they wait for each other in every pass
        model = load(folders / "0")
        head = losses.Head(model)

        def loss(groups, model=model, head=head):
            tensors = map(losses.tensors, groups)
            with torch.no_grad():
                return sum(
                    float((g["token_weights"] * losses.log_probabilities(model, head, g)).sum()) for g in tensors
                )

        assert sum(map(loss, shares)) == pytest.approx(loss(source.step(0)), rel=1e-5)


def test_regression_and_optimism_by_hand():
    logps, reference = torch.tensor([-2.0, -6.0]), torch.tensor([-3.0, -4.0])  # ratios +1 and -2, so d = 3

    def loss(margin, smoothing=0.0, **changes):
        options = OPTIONS["dpo"].model_copy(update={"beta": 0.5, **changes})
        told = torch.tensor([2.0, 4.0]), torch.tensor([smoothing]), torch.tensor([margin])
        return float(losses.dpo_losses(logps, reference, *told, options))

    assert loss(0.25, loss="regress") == pytest.approx((1.5 - 0.25) ** 2)
    assert loss(-1.0, loss="regress") == pytest.approx((1.5 + 1.0) ** 2)  # the pair may be the wrong way round
    assert loss(0.25, 1.0, loss="regress") == pytest.approx((-1.5 - 0.25) ** 2)
    plain = loss(0.0)
    assert loss(0.0, optimism=0.1) == pytest.approx(plain + 0.1 * 0.5 * (1 - 2) / 2)
    assert loss(0.0, 1.0) == pytest.approx(math.log1p(math.exp(1.5)))  # all of it the wrong way round


def test_kto_losses_by_hand():
    ratios, labels = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    good, bad = losses.kto_losses(ratios, labels, torch.tensor(0.5), 2.0).tolist()
    assert good == pytest.approx(1 - 1 / (1 + math.exp(-1.0)))
    assert bad == pytest.approx(1 - 1 / (1 + math.exp(1.0)))


def rated_batches(folders, weights, limit=batches.PASS_TOKENS):
    """Three rows of one step, the second a bad one."""
    rows, strangers = encode(PROMPTS, CHOSEN), encode(PROMPTS, [CHOSEN[2], CHOSEN[0], CHOSEN[1]])
    known, strange = (
        losses.reference_logps(Reference(folders / "1", several, "float32"), lambda done, total: None)
        for several in (rows, strangers)
    )
    labels, plan = np.array([True, False, True]), np.array([[0, 1, 2]])
    return batches.RatedBatches(rows, labels, np.array(weights), known, plan, strangers, strange, limit)


@pytest.mark.parametrize("limit", [batches.PASS_TOKENS, 8])
def test_rated_rows_give_the_loss_of_trl(folders, tmp_path, limit):
    """With its own weights for good and bad answers, in one pass or in several."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    source = rated_batches(folders, [1.5, 0.5, 1.5], limit)
    options = KtoOptions(**{**tiny.KTO, **STEPS, "mixture": {"own": 3}, "beta": 0.3})
    model = load(folders / "0")
    ours = trainer_of("kto", model, tmp_path, source, options)
    ours.create_optimizer_and_scheduler(2)
    loss = ours.training_step(model, list(map(losses.tensors, source.step(0))))

    def cut(rows, i):
        begin, end = rows.starts[i], rows.starts[i] + rows.lengths[i]
        return rows.tokens[begin : begin + rows.prompts[i]].tolist(), rows.tokens[
            begin + rows.prompts[i] : end
        ].tolist()

    data = [
        {"prompt_ids": cut(source.rows, i)[0], "completion_ids": cut(source.rows, i)[1]}
        | {"KL_completion_ids": cut(source.strangers, i)[1], "label": bool(source.labels[i])}
        for i in range(3)
    ]

    class Prepared(KTOTrainer):
        def _prepare_dataset(self, dataset, *arguments):
            return dataset

    arguments = KTOConfig(
        output_dir=str(tmp_path), beta=0.3, desirable_weight=1.5, undesirable_weight=0.5, use_cpu=True, bf16=False,
        report_to=[], gradient_checkpointing=False, remove_unused_columns=False, per_device_train_batch_size=3,
    )  # fmt: skip
    theirs = Prepared(
        model=load(folders / "0"),
        ref_model=load(folders / "1"),
        args=arguments,
        train_dataset=Dataset.from_list(data),
        processing_class=TOKENIZER,
    )
    expected = theirs._compute_loss(theirs.model, theirs.data_collator(data), False)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_turns_of_weight_zero_are_read_and_not_learned(folders):
    """A first answer and what is said to it: the model reads both, and learns the second answer and its end alone."""
    dialogue = [*tiny.reply("2 1"), *tiny.user("3 :"), *tiny.reply("1 2")]
    prompt = tiny.user("1 2 :")
    [rows] = [encoding.encode(TOKENIZER, [prompt], [dialogue], ["r"], 64, [[0.0, 0.0, 1.0]])]
    words = TOKENIZER.convert_ids_to_tokens(rows.tokens.tolist())
    learnt = [word for word, weight in zip(words, rows.weights, strict=True) if weight]
    assert learnt == ["1", "2", "<eos>"]
    assert rows.masses().tolist() == [3.0]
    source = batches.SftBatches(rows, np.ones(1), np.array([[0]]), 1.0)
    model = load(folders / "0")
    trainer = trainer_of("sft", model, folders / "c", source)
    loss = sum(trainer.compute_loss(model, losses.tensors(group)) for group in source.step(0))
    whole = by_hand(model, rows)[0]
    assert loss.item() == pytest.approx(float(-whole[-3:].mean()), rel=1e-5)
    asked = [*prompt, *dialogue[:2]]
    alone = encoding.encode(TOKENIZER, [asked], [dialogue[2:]], ["r"], 64)
    assert alone.tokens.tolist() == rows.tokens.tolist()  # what generation reads, training reads
    both = encoding.encode(
        TOKENIZER, [prompt, asked], [dialogue, dialogue[2:]], ["a", "b"], 64, [[0.5, 0.0, 1.0], None]
    )
    assert both.masses().tolist() == [0.5 * 3 + 3, 3.0]
    packed = batches.SftBatches(both, np.ones(2), np.array([[0, 1]]), 1.0, packed=True)
    assert sum(float(group["token_weights"].sum()) for group in packed.step(0)) == pytest.approx(1.0)


def test_neighbours_of_one_role_are_one_message():
    parts = [*tiny.reply("2 "), *tiny.reply("1")]
    rows = encoding.encode(TOKENIZER, [tiny.user("1 2 :")], [parts], ["r"], 64, [[0.0, 1.0]])
    whole = encoding.encode(TOKENIZER, [tiny.user("1 2 :")], [tiny.reply("2 1")], ["r"], 64)
    assert rows.tokens.tolist() == whole.tokens.tolist()
    assert rows.weights[rows.prompts[0] :].tolist() == [0.0, 1.0, 1.0]
