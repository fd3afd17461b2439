"""Encoders for GGUF's K-quants, which gguf-py can only decode: plain round-to-nearest, no search for better scales.

Layouts as in ggml's `block_q4_K`, `block_q5_K`, `block_q6_K`: 256 weights a block; f16 super-scales; 6-bit scales and
minima for 8 sub-blocks of 32 (Q4_K, Q5_K), or int8 scales for 16 sub-blocks of 16 (Q6_K).
"""

import numpy as np
from gguf import GGMLQuantizationType as Type

BLOCK = 256


def quantize(rows, kind):
    """[n, k·256] float32 to [n, bytes] uint8."""
    blocks = rows.astype(np.float32).reshape(-1, BLOCK)
    encoded = {Type.Q4_K: _q4_k, Type.Q5_K: _q5_k, Type.Q6_K: _q6_k}[kind](blocks)
    return encoded.reshape(rows.shape[0], -1)


def _divisor(scale):
    """A block of zeros has a scale of 0; whatever its codes are, they decode to zeros."""
    return np.where(scale == 0, np.float32(1), scale.astype(np.float32))


def _scales_and_minima(blocks, levels):
    """Super-scales [n, 1] as f16, 6-bit scales and minima [n, 8], and codes [n, 8, 32], with x ≈ d·scale·code − dmin·minimum."""
    sub = blocks.reshape(-1, 8, 32)
    low = np.minimum(sub.min(-1), 0.0)
    step = (sub.max(-1) - low) / levels
    d = (step.max(-1, keepdims=True) / 63).astype(np.float16)
    dmin = (-low.min(-1, keepdims=True) / 63).astype(np.float16)
    scale = np.clip(np.rint(step / _divisor(d)), 1, 63).astype(np.uint8)
    minimum = np.clip(np.rint(-low / _divisor(dmin)), 0, 63).astype(np.uint8)
    width = (_divisor(d) * scale)[..., None]
    shift = (dmin.astype(np.float32) * minimum)[..., None]
    codes = np.clip(np.rint((sub + shift) / width), 0, levels).astype(np.uint8)
    return d, dmin, _pack_six_bits(scale, minimum), codes


def _pack_six_bits(scale, minimum):
    """The first four of each whole in bytes 0–7; the last four split: low nibbles in bytes 8–11, high bits atop bytes 0–7."""
    return np.concatenate(
        [
            scale[:, :4] | (scale[:, 4:] >> 4) << 6,
            minimum[:, :4] | (minimum[:, 4:] >> 4) << 6,
            (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4,
        ],
        axis=1,
    )


def _nibbles(codes):
    """[n, 8, 32] codes to [n, 128]: sub-blocks 2j and 2j+1 share 32 bytes, the even one in the low half."""
    return ((codes[:, 0::2] & 15) | (codes[:, 1::2] & 15) << 4).reshape(len(codes), 128)


def _q4_k(blocks):
    d, dmin, scales, codes = _scales_and_minima(blocks, 15)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), scales, _nibbles(codes)], axis=1)


def _q5_k(blocks):
    d, dmin, scales, codes = _scales_and_minima(blocks, 31)
    bit = np.arange(8, dtype=np.uint8)[None, :, None]
    high = ((codes >> 4) << bit).sum(axis=1, dtype=np.uint8)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), scales, high, _nibbles(codes)], axis=1)


def _q6_k(blocks):
    sub = blocks.reshape(-1, 16, 16)
    peak = np.abs(sub).max(-1) / 31
    d = (peak.max(-1, keepdims=True) / 127).astype(np.float16)
    scale = np.clip(np.rint(peak / _divisor(d)), 1, 127)
    # Every other sub-block takes a negative scale: a reader that takes scales for unsigned is then wrong.
    scale[:, 1::2] *= -1
    width = (_divisor(d) * scale)[..., None]
    codes = (np.clip(np.rint(sub / width), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate(
        [(codes[:, :, 0] & 15) | (codes[:, :, 2] & 15) << 4, (codes[:, :, 1] & 15) | (codes[:, :, 3] & 15) << 4], axis=2
    )
    shift = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    high = ((codes >> 4) << shift).sum(axis=2, dtype=np.uint8)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), scale.astype(np.int8).view(np.uint8), d.view(np.uint8)]
    return np.concatenate(parts, axis=1)
