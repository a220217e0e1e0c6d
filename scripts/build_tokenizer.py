"""Builds the small tokenizer that ships with the package (byte-pair encoding over robot instructions): python scripts/build_tokenizer.py

Ties are broken differently from run to run, so ids change; a saved policy carries its own tokenizer and does not mind.
"""

import itertools
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TARGET = Path(__file__).parents[1] / "stare_lit" / "models" / "vla" / "tokenizer" / "tokenizer.json"
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]  # ids 0..3
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-_/()")
COLOURS = "red green blue yellow orange purple white black grey brown pink".split()
OBJECTS = (
    "cube block peg ball carrot spoon eggplant plate towel basket bowl cup mug can bottle box drawer door tray sink target goal region cloth table".split()
)
VERBS = "push pull move lift pick place put stack slide open close turn grasp insert rotate take bring drop".split()
PLACES = "on in into onto to from under next left right front of behind above top up down upright and then it the a with inside out away".split()
SENTENCES = [
    "in: what action should the robot take to pick up the object? out:",
    "push the cube to the goal region in front of it",
    "pull the cube to the goal region behind it",
    "stack the red cube on top of the green cube",
    "lift the peg and stand it upright on the table",
    "put the block on the red target",
    "put carrot on plate",
    "put eggplant into yellow basket",
    "put the spoon on the towel",
    "stack the green block on the yellow block",
]


def main() -> None:
    """Train on the sentences and on every word, so that a common word is one token and any other word still has tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=320, min_frequency=2, special_tokens=SPECIAL, initial_alphabet=LETTERS, end_of_word_suffix="</w>", show_progress=False
    )
    words = [" ".join(pair) for pair in itertools.product(VERBS + PLACES, COLOURS, OBJECTS)]
    tokenizer.train_from_iterator(words + SENTENCES * 200, trainer)
    tokenizer.save(str(TARGET), pretty=False)
    print(f"{TARGET}: {tokenizer.get_vocab_size()} tokens, {TARGET.stat().st_size} bytes")
    for sentence in SENTENCES:
        print(tokenizer.encode(sentence).tokens)


if __name__ == "__main__":
    main()
