"""The one layout of every TensorDict in this project. VLA keys mirror ``torchrl.data.vla`` (a test holds them equal).

One row of time is one *decision*: the policy sees an observation and emits a chunk of H actions, of which the environment executes
h <= H steps (fewer only where the episode ends inside the chunk). ``*B`` is the batch, A the action dimension (7), H the chunk size::

    TensorDict(batch_size=[*B])
    ├── observation
    │   ├── image            uint8   [*B, 3, H_px, W_px]   (or a sub-tree keyed by camera name)
    │   └── state            float32 [*B, S]               proprioception; the only state a policy may read
    ├── language_instruction text    (NonTensor)           written by a transform in the parent process, never piped
    ├── instruction_tokens   int64   [*B, L]               the text as a policy's tokenizer gives it, padded on the left
    ├── instruction_id       int64   [*B]                  index into the environment's table of instructions
    ├── signals
    │   └── <name>           float32 [*B]                  privileged, metres / radians / flags 0-1
    ├── episode_seed         int64   [*B]                  the seed the episode was reset with
    ├── stage_index          int64   [*B]                  0..K-1 worked on, K all done, -1 padding
    ├── stage_error          float32 [*B]                  d_t in [0, 1] inside the current stage, 0 once done
    ├── potential            float32 [*B]                  Phi(s)
    ├── vla_action
    │   ├── tokens           int64   [*B, H, A]            window ids, 0..num_bins-1 (never re-encoded)
    │   ├── log_probs        float32 [*B, H, A]            behaviour log-probability of each token
    │   └── chunk            float32 [*B, H, A]            what the environment executes
    ├── action               float32 [*B, A]               raw per-step action (demonstrations)
    ├── action_is_pad        bool    [*B, H]               True = padded (upstream's sense)
    ├── state_value          float32 [*B, 1]
    └── next
        ├── ... every observation key above, as it was *before* an auto-reset
        ├── reward           float32 [*B, 1]               R = sum_{i<h} gamma^i r_i, plus shaping where StageReward is on
        ├── step_reward      float32 [*B, H]               undiscounted r_i of each executed step, 0 beyond h
        ├── dense_reward     float32 [*B, H]               the environment's own dense reward of each step of the chunk (on request)
        ├── num_steps        int64   [*B, 1]               h
        ├── success          bool    [*B, 1]               success at the end of the decision
        └── terminated, truncated, done   bool [*B, 1]
"""

from tensordict import NestedKey

OBSERVATION: NestedKey = "observation"
IMAGE: NestedKey = ("observation", "image")
STATE: NestedKey = ("observation", "state")
INSTRUCTION: NestedKey = "language_instruction"
INSTRUCTION_TOKENS: NestedKey = "instruction_tokens"
INSTRUCTION_ID: NestedKey = "instruction_id"
SIGNALS: NestedKey = "signals"
EPISODE_SEED: NestedKey = "episode_seed"

STAGE_INDEX: NestedKey = "stage_index"
STAGE_ERROR: NestedKey = "stage_error"
POTENTIAL: NestedKey = "potential"

VLA_ACTION: NestedKey = "vla_action"
ACTION_TOKENS: NestedKey = ("vla_action", "tokens")
LOG_PROBS: NestedKey = ("vla_action", "log_probs")
ACTION_CHUNK: NestedKey = ("vla_action", "chunk")
ACTION: NestedKey = "action"
ACTION_IS_PAD: NestedKey = "action_is_pad"
STATE_VALUE: NestedKey = "state_value"

REWARD: NestedKey = "reward"
STEP_REWARD: NestedKey = "step_reward"
DENSE_REWARD: NestedKey = "dense_reward"
NUM_STEPS: NestedKey = "num_steps"
SUCCESS: NestedKey = "success"
TERMINATED: NestedKey = "terminated"
TRUNCATED: NestedKey = "truncated"
DONE: NestedKey = "done"


def signal(name: str) -> tuple[str, str]:
    """Key of the privileged signal ``name``."""
    return ("signals", name)


def next_(key: NestedKey) -> tuple[str, ...]:
    """``key`` under ``next``."""
    return ("next", key) if isinstance(key, str) else ("next", *key)
