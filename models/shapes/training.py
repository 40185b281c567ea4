"""What the four training scripts share: how long a training lasts, its learning rate, and batches of conversations."""

import time

import torch

# More make matrices this small hardly faster, and a minute of training mean something else on each machine.
torch.set_num_threads(1)

IGNORED = -100
"""The label of a token that is not trained on: the default of PyTorch's cross entropy."""


Conversation = list[tuple[list[int], list[int]]]
"""The tokens of each turn: a prompt and an answer."""


def length(conversation: Conversation) -> int:
    return sum(len(prompt) + len(answer) for prompt, answer in conversation)


class Timer:
    """The share of a training that is spent, and the learning rate that goes with it: a short rise, then a straight line
    down. Time is processor time, so that a busy machine trains longer and not worse."""

    def __init__(self, minutes: float, rate: float) -> None:
        self.began, self.length, self.rate, self.step = time.process_time(), minutes * 60, rate, 0

    def seconds(self) -> float:
        return time.process_time() - self.began

    def spent(self) -> float:
        return self.seconds() / self.length

    def advance(self, optimizer: torch.optim.Optimizer) -> None:
        """Begins a step."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate * min(1, self.step / 200) * max(0.02, 1 - self.spent())
        self.step += 1

    def tell(self, said: str) -> None:
        print(f"{self.seconds() / 60:.1f} min, step {self.step}: {said}", flush=True)


def step(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step against the loss, its gradient held to length 1."""
    optimizer.zero_grad()
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def padded(conversations: list[Conversation], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of conversations; only the answers are trained on."""
    longest = max(map(length, conversations))
    ids = torch.full((len(conversations), longest), pad)
    labels = torch.full((len(conversations), longest), IGNORED)
    for row, conversation in enumerate(conversations):
        place = 0
        for prompt, answer in conversation:
            answered, end = place + len(prompt), place + len(prompt) + len(answer)
            ids[row, place:end] = torch.tensor(prompt + answer)
            labels[row, answered:end] = torch.tensor(answer)
            place = end
    return ids, labels


def language_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each next token."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
