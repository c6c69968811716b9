"""What the figures show that metrics.jsonl does not hold, gathered once at the end of a run (`figures.npz`).

Drawing then needs neither the data nor the network, only this small file: a fresh clone redraws every figure.
"""

import numpy as np
import torch
from torch import Tensor

from common.evaluation import Score, inputs_and_targets
from common.problem import Embeddings

HIDDEN_UNITS = 64
HIDDEN_SEQUENCES = 256
MOST_EIGENVALUES = 5000


class Showcase:
    """Three test sequences whose predictions are kept along the run, projected on the plane that shows most of the targets.

    The plane is spanned by the first two principal axes of the test targets.
    """

    SEQUENCES = 3

    def __init__(self, embeddings: Embeddings):
        self.index_S = torch.arange(min(self.SEQUENCES, embeddings.sizes["test"]))
        self.input_TES, self.target_TES = inputs_and_targets(embeddings.get("test", self.index_S))
        targets_ME = embeddings.stored["test"][:, 1:].flatten(0, 1).to("cpu", torch.float64)
        centred_ME = targets_ME - targets_ME.mean(dim=0)
        variance_E, axes_EE = torch.linalg.eigh(centred_ME.T @ centred_ME)
        axes_E2 = axes_EE[:, -2:].flip(1)
        self.axes_E2 = (axes_E2 * axes_E2.sum(dim=0).sign()).to(torch.float32)  # eigenvectors come with any sign
        self.explained_2 = (variance_E[-2:].flip(0) / variance_E.sum()).to(torch.float32)
        self.iterations: list[int] = []
        self.planes: list[Tensor] = []

    def project(self, z_TES: Tensor) -> Tensor:
        """(T, 128, S) → (S, T, 2), on the CPU."""
        return (z_TES.cpu().permute(2, 0, 1) @ self.axes_E2).contiguous()

    def add(self, iteration: int, prediction_TES: Tensor) -> None:
        if iteration not in self.iterations:  # a run that is resumed before its first iteration validates at 0 again
            self.iterations.append(iteration)
            self.planes.append(self.project(prediction_TES))

    def state_dict(self) -> dict:
        return {"iterations": list(self.iterations), "planes": list(self.planes)}

    def load_state_dict(self, state: dict) -> None:
        self.iterations, self.planes = list(state["iterations"]), list(state["planes"])


def singular_values(u_Nr: Tensor, v_Nr: Tensor) -> Tensor:
    """Of U Vᵀ, float32 (r,) on the CPU; not numbers where the factors have diverged."""
    if not (u_Nr.isfinite().all() and v_Nr.isfinite().all()):
        return torch.full((u_Nr.shape[1],), torch.nan)
    # Those of the two small triangular factors: Q_u R_u R_vᵀ Q_vᵀ.
    return torch.linalg.svdvals(torch.linalg.qr(u_Nr.cpu()).R @ torch.linalg.qr(v_Nr.cpu()).R.T)


@torch.no_grad()
def figure_data(training, test: Score, trivial: dict[str, Score]) -> dict[str, np.ndarray]:
    """The arrays of figures.npz; names end in their axes (S showcase sequences, F frames, T steps, E dimensions, M units)."""
    show, embeddings = training.showcase, training.embeddings
    u_Nr, v_Nr = training.u_Nr.cpu(), training.v_Nr.cpu()
    start_r = singular_values(*training.start_adapter(training.config))
    if training.begun_from:
        start_r = training.begun_from["singular_values"]
    some = torch.arange(min(HIDDEN_SEQUENCES, embeddings.sizes["test"]))
    input_TEB, _ = inputs_and_targets(embeddings.get("test", some))
    states_NTB = training.states(input_TEB).to("cpu", torch.float32)
    units = torch.linspace(0, len(u_Nr) - 1, min(HIDDEN_UNITS, len(u_Nr))).long()
    histogram, edges = np.histogram(states_NTB.numpy(), bins=50, range=(-1, 1))
    weight_NN = training.rollout.reservoir.to("cpu", torch.float32).dense()
    change_NN = u_Nr @ v_Nr.T

    def embedding(z_TES: Tensor) -> np.ndarray:
        with np.errstate(over="ignore"):  # predictions of a run that diverged
            return z_TES.permute(2, 0, 1).cpu().numpy().astype(np.float16)

    def eigenvalues(matrix_NN: Tensor) -> np.ndarray:
        # Where θ has diverged LAPACK may crash the process; and the time grows as N³, to half an hour at N = 10,000.
        if len(matrix_NN) > MOST_EIGENVALUES or not matrix_NN.isfinite().all():
            return np.full(len(matrix_NN), np.nan, dtype=np.complex64)
        return torch.linalg.eigvals(matrix_NN).numpy().astype(np.complex64)

    frozen_N = eigenvalues(weight_NN)
    return {
        "frames_SFYX": embeddings.data.frames("test", show.index_S.numpy()),
        "target_STE": embedding(show.target_TES),
        "prediction_STE": embedding(training.predict(show.input_TES)),
        "plane_target_ST2": show.project(show.target_TES).numpy(),
        "plane_iteration_n": np.array(show.iterations, dtype=np.int64),
        "plane_prediction_nST2": torch.stack(show.planes).numpy(),
        "plane_explained_2": show.explained_2.numpy(),
        "mse_by_frame_T": test.by_frame_T.numpy().astype(np.float32),
        "trivial_names": np.array(list(trivial)),
        "trivial_mse_by_frame_kT": np.stack([s.by_frame_T.numpy().astype(np.float32) for s in trivial.values()]),
        "eigenvalues_frozen": frozen_N,
        "eigenvalues_trained": eigenvalues(weight_NN + change_NN) if change_NN.any() else frozen_N,
        "singular_values_start": start_r.numpy(),
        "singular_values_final": singular_values(u_Nr, v_Nr).numpy(),
        "hidden_TM": states_NTB[units, :, 0].T.numpy().astype(np.float16),
        "hidden_rms_T": states_NTB.square().mean(dim=(0, 2)).sqrt().numpy(),
        "hidden_histogram": histogram,
        "hidden_edges": edges.astype(np.float32),
        **({"leak_A": training.leak.alpha_X1.detach().flatten().cpu().numpy()} if training.leak else {}),
    }
