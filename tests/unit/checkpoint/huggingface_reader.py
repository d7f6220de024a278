"""Run where this package cannot be imported: opens exported folders by transformers' Auto classes.

    python huggingface_reader.py SCRATCH FOLDER ...

SCRATCH holds `ids.safetensors` and `words.json`, what to do with each folder; what was found comes
as `NUMBER.safetensors` and lines of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys

OUT_OF_REACH = ("megatron_hyena", "deepspeed", "megatron", "omegaconf", "accelerate", "peft")
"""As where torch and transformers alone are installed."""


class Refuse:
    """Lets nothing of the training side be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OUT_OF_REACH:
            raise ModuleNotFoundError(f"{name} is out of reach in this test")


def find_installed(name, package=None, find=importlib.util.find_spec):
    return None if name.partition(".")[0] in OUT_OF_REACH else find(name, package)


sys.meta_path.insert(0, Refuse())
importlib.util.find_spec = find_installed

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

TEXT = "ACGTNnacgtUuRYKMswv"


def opened(auto, folder, **options):
    model, report = getattr(transformers, auto).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    told = {kind: sorted(report[f"{kind}_keys"]) for kind in ("missing", "unexpected")}
    return model, told


def language_model(folder, ids, asked):
    model, told = opened(asked["auto"], folder)
    out = model(input_ids=ids, labels=ids, output_hidden_states=True)
    found = {"logits": out.logits, "loss": out.loss.reshape(1), "states": out.hidden_states[0]}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    base, told_base = opened("AutoModel", folder)
    found["base_states"] = base(input_ids=ids).last_hidden_state
    passes, refused = {}, []
    if asked["auto"] == "AutoModelForCausalLM":
        for beams in (1, 3):
            for cache in (True, False):
                name = f"grown/{beams}/{cache}"
                found[name], passes[name] = grown(model, ids[:2, :5], beams, cache)
        written, refused = from_prompts(model, folder)
        found |= written
    more = {"tied": tied, "missing_base": told_base["missing"], "passes": passes}
    more["refused"] = refused
    return found, {**told, **more}


def from_prompts(model, folder):
    """What the tokenizer's batch of prompts of several lengths, and each prompt alone, become."""
    prompts = ["ATGACCGATTAA", "ATG", "GGATCC"]
    letters = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    options = {"max_new_tokens": 6, "do_sample": False}
    alone = [model.generate(**letters([one], return_tensors="pt"), **options) for one in prompts]
    refused = []
    for side, more in (("right", {}), ("left", {"use_cache": False}), ("left", {})):
        letters.padding_side = side
        batch = letters(prompts, padding=True, return_tensors="pt")
        try:
            written = model.generate(**batch, **options, **more)
        except ValueError as error:
            refused.append(str(error))
    found = {"batch": written[:, -6:], "alone": torch.cat([one[:, -6:] for one in alone])}
    return found, refused


def grown(model, ids, beams, cache):
    """What is written by default (with a cache) or without, and how many passes that took."""
    passes = []
    handle = model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    options = {} if cache else {"use_cache": False}
    ids = model.generate(ids, max_new_tokens=6, do_sample=False, num_beams=beams, **options)
    handle.remove()
    return ids, len(passes)


def tokenizer(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    batch = tokenizer([TEXT, "AC"], padding=True, return_tensors="pt")
    found = {"token_ids": batch["input_ids"], "mask": batch["attention_mask"]}
    return found, {"decoded": tokenizer.decode(batch["input_ids"][0])}


def heads(folder, ids, asked):
    """New heads (or trained ones): loss, one step of training, saved and opened again."""
    found: dict[str, torch.Tensor] = {}
    said: dict[str, dict] = {}
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    for auto, options, labels in (
        ("AutoModelForSequenceClassification", {"num_labels": 3}, torch.tensor([2, 0])),
        ("AutoModelForSequenceClassification", {"num_labels": 1}, torch.tensor([0.5, -1.0])),
        ("AutoModelForTokenClassification", {"num_labels": 4}, ids % 4),
    ):
        torch.manual_seed(0)
        model, told = opened(auto, folder, id2label=None, **options)
        name = f"{auto}/{options['num_labels']}"
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
        model.eval()
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=mask, labels=labels)
            cut = model(input_ids=ids[1:, :40]).logits
        found[f"{name}/logits"], found[f"{name}/cut"] = out.logits, cut
        found[f"{name}/loss"] = out.loss.reshape(1)
        said[name] = {**told, "still": still}
        if auto.endswith("TokenClassification"):  # a folder takes a second to open
            model.save_pretrained(f"{folder}_again")
            again, told_again = opened(auto, f"{folder}_again")
            found["again"] = again(input_ids=ids, attention_mask=mask, labels=labels).logits
            said[name]["missing_again"] = told_again["missing"]
    return found, {"heads": said}


def trained_head(folder, ids, asked):
    model, told = opened(asked["auto"], folder)
    out = model(input_ids=ids, labels=torch.tensor(asked["labels"]))
    found = {"logits": out.logits, "loss": out.loss.reshape(1)}
    return found, {**told, "id2label": model.config.id2label, "problem": model.config.problem_type}


def main(scratch, *folders):
    ids = load_file(f"{scratch}/ids.safetensors")["ids"]
    with open(f"{scratch}/words.json", encoding="utf-8") as file:
        words = json.load(file)
    for number, (folder, asked) in enumerate(zip(folders, words, strict=True)):
        found, said = globals()[asked["act"]](folder, ids, asked)
        if asked["act"] == "language_model":
            more, told = tokenizer(folder)
            found, said = found | more, said | told
        plain = {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}
        save_file(plain, f"{scratch}/{number}.safetensors")
        sys.stdout.write(f"said {json.dumps(said)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
