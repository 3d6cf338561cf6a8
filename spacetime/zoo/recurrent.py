"""Recurrent networks: sequence classifiers and single steps. Part of the zoo; imports torch only."""

from __future__ import annotations

from torch import Tensor, nn


class SequenceClassifier(nn.Module):
    """A recurrent network over [rows, steps, features]; its last state is classified."""

    def __init__(self, recurrent: nn.GRU | nn.LSTM, classes: int = 10) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, classes)

    def forward(self, sequence: Tensor) -> Tensor:
        states, _ = self.recurrent(sequence)
        logits: Tensor = self.head(states[:, -1])
        return logits


def gru_classifier(features: int = 128, hidden: int = 256) -> SequenceClassifier:
    return SequenceClassifier(nn.GRU(features, hidden, batch_first=True))


def lstm_classifier(features: int = 128, hidden: int = 256) -> SequenceClassifier:
    return SequenceClassifier(nn.LSTM(features, hidden, batch_first=True))


class GruStep(nn.Module):
    """One step of a GRU: the caller keeps the state."""

    def __init__(self, features: int = 256, hidden: int = 256) -> None:
        super().__init__()
        self.cell = nn.GRUCell(features, hidden)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        next_hidden: Tensor = self.cell(features, hidden)
        return next_hidden


class LstmStep(nn.Module):
    """One step of an LSTM: the caller keeps both states."""

    def __init__(self, features: int = 256, hidden: int = 256) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(features, hidden)

    def forward(self, features: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        next_hidden, next_memory = self.cell(features, (hidden, memory))
        return next_hidden, next_memory
