import numpy as np
import pytest
import torch

from encoders.vectors import VectorEncoder, VectorTransform


def test_a_vector_is_one_token_and_a_missing_one_none() -> None:
    transform, encoder = VectorTransform(3), VectorEncoder(3, name="clip")
    assert encoder.modality == "vector.clip"
    samples = [transform(np.array([1.0, 2.0, 3.0])), None]
    inputs = transform.collate(samples)
    tokens = encoder(inputs)
    assert tokens.values.tolist() == [[[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]]
    assert tokens.mask.tolist() == [[True], [False]]
    inputs["vectors"][1] = torch.nan
    assert torch.equal(encoder(inputs).values, tokens.values)
    assert encoder.pooled(tokens).tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    assert transform.collate([])["vectors"].shape == (0, 3)


def test_wrong_vectors_are_refused() -> None:
    transform = VectorTransform(3)
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(3,\)"):
        transform(np.zeros(2))
    with pytest.raises(ValueError, match="not finite"):
        transform(np.array([0.0, np.nan, 1.0]))


def test_fingerprints_follow_the_arguments() -> None:
    assert VectorTransform(3).fingerprint() != VectorTransform(4).fingerprint()
    one, two = VectorEncoder(3, name="a"), VectorEncoder(3, name="b")
    assert one.fingerprint() != two.fingerprint()
