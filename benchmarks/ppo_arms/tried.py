"""Settings of `ppo_baseline.py` that were tried before, with their greedy success; one run each, the machine shared, learning rates constant."""

PUSH, PUSH_100 = (f"PushCube-v1, seed 0, {num} validation seeds" for num in (50, 100))
LIFT = "LiftPegUpright-v1, seed 0, 100 validation seeds"
TRIED = {
    "stock": {
        PUSH: {
            "16 envs x 50 steps, 8 minibatches, 8 epochs": "0.02 at 20k steps, 0.54 at 40k, 0.84 at 60k, 0.80 to 0.86 from there to 160k",
            "16 envs x 50 steps, 32 minibatches, 4 epochs (its defaults)": "0.00 at 20k, 0.22 at 40k, 0.02 at 60k",
            "32 envs x 25 steps, 16 minibatches, 8 epochs": "0.50 at 20k, 0.46 at 40k, 0.16 at 60k",
        },
        PUSH_100: {"16 envs x 50 steps, 2 minibatches, 8 epochs": "0.00 at 19k, 0.35 at 29k, 0.50 at 38k, 0.54 at 48k"},
    },
    "scratch": {
        PUSH: {
            "shaping with gamma 0.9 (the paper's), raw state, 64 wide": "0.06 at 21k, 0.04 at 41k: the critic knows the potential, no advantage is left",
            "as it is run here, but 4 epochs of 100": "0.16 at 21k, 0.54 at 41k, 0.70 at 61k, 0.76 at 81k, 0.70 at 101k",
            "shaping_gamma 1, normalised state, 32 wide, lr 2e-3, 5 epochs of 200": "0.00 at 21k, 0.84 at 41k, 0.84 at 61k, 0.86 at 81k",
            "5 values, gamma 0.8, lr 1e-3, 3 epochs of 100": "0.48 at 22k",
            "7 values, gamma 0.8, lr 2e-3, 4 epochs of 100": "0.14 at 22k, 0.22 at 32k",
            "action_prior 0.6, lr 1e-3, 3 epochs of 100": "0.00 at 22k, 0.66 at 32k, 0.62 at 42k",
            "action_prior 0.6, lr 2e-3, 4 epochs of 100": "0.56 at 22k, 0.34 at 32k, 0.56 at 42k",
            "action_prior 0.3, lr 2e-3, 4 epochs of 100": "0.28 at 22k, 0.50 at 32k, 0.74 at 42k, 0.86 at 53k, 0.68 at 60k",
            "action_prior 0.4, lr 1e-3, 4 epochs of 100, entropy_coeff -0.01": "0.52 at 22k, 0.32 at 32k, 0.70 at 42k, 0.70 at 53k, 0.62 at 60k",
        },
        PUSH_100: {
            "constant learning rates": "seeds 0 to 2, alone: 0.9 at 156,800 steps, 360 s; over 160,000 (best 0.85), 317 s; 125,600, 264 s",
            "constant learning rates, seed 0, once more": "0.00 at 10k, 0.50 at 21k, 0.67 at 31k, 0.72 at 42k, 0.88 at 52k, 0.82 at 62k",
            "4 epochs of 100": "0.16 at 22k, 0.64 at 42k, 0.62 at 63k, 0.62 at 84k, 0.77 at 94k, 0.87 at 126k, 0.84 at 136k; stopped there",
            "5 epochs of 200": "0.04 at 10k, 0.12 at 21k, 0.65 at 31k, 0.82 at 42k, 0.85 at 52k, 0.65 at 62k",
            "5 epochs of 200, gamma 0.8": "0.03 at 10k, 0.16 at 21k, 0.25 at 31k, 0.42 at 42k, 0.78 at 52k, 0.56 at 62k",
            "5 epochs of 200, 64 wide, lr 1e-3": "0.04 at 10k, 0.07 at 21k, 0.08 at 31k, 0.39 at 42k, 0.57 at 52k, 0.60 at 62k",
            "chunks of 2 actions, 400 decisions a round, 5 epochs of 100": "0.00 at 10k, 0.04 at 21k, 0.81 at 31k, 0.47 at 42k, 0.50 at 52k, 0.05 at 62k",
        },
    },
    "sft": {
        PUSH_100: {
            "20 demonstrations, 400 updates": 1.0,
            "9 demonstrations, 400 updates": 0.76,
            "9 demonstrations, 150 updates": 0.63,
            "6 demonstrations, 400 updates": 0.39,
            "6 demonstrations, 150 updates": 0.23,
            "4 demonstrations, 400 updates": 0.21,
        },
        LIFT: {"30 demonstrations, 1500 updates": 0.25, "100 demonstrations, 1500 updates": 0.84, "200 demonstrations, 3000 updates": 0.91},
    },
    "few": {
        LIFT: {"lr 3e-4 from 0.22": "0.18 at 10k, 0.30 at 21k, 0.32 at 31k"},
        PUSH_100: {  # the entropy of the seven tokens of a policy of 4 demonstrations is 1.6 nats, of 19: it tries little
            "the shipped configuration, from 0.63": "0.78 at 8k, 0.88 at 16k, 0.96 at 24k",
            "the shipped configuration, from 0.39": "0.53 at 8k, 0.60 at 16k, 0.64 at 24k, 0.63 at 32k, 0.68 at 40k",
            "the shipped configuration, from 0.21": "0.35 at 10k, 0.39 at 42k, 0.56 at 73k, 0.59 at 94k, 0.69 at 135k, 0.65 at 146k",
            "lr 1e-3, 8 epochs of 400, from 0.21": "0.32 at 10k, 0.46 at 21k",
            "lr 1e-3, 8 epochs of 400, shaping_gamma 1, from 0.21": "0.34 at 10k, 0.37 at 21k",
            "lr 3e-3, 8 epochs of 400, shaping_gamma 1, gamma 0.9, lmbda 0.9, from 0.21": "0.35 at 10k, 0.36 at 21k, 0.31 at 31k",
            "lr 1e-3, 8 epochs of 400, shaping_gamma 1, temperature 2, from 0.21": "0.30 at 10k",
        },
    },
}
