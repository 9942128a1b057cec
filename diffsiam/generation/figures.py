"""The arrays behind the figures and the numbers beside them; drawing is `diffsiam.report`'s.

Under results/generation/<pretrain>/, images uint8 (H, W, 3):

denoise.npz (Figure 1.1): ``images`` (rows, levels, H, W, 3), x0_hat of the frozen model from ``noisy`` of the same
    shape; ``originals`` (rows, H, W, 3); ``timesteps`` (levels,) int64, paper steps.
counterfactual_<method>.npz (Figures 4.1 to 4.4): ``images`` (pairs, ranges, scales, H, W, 3) on the way from
    ``sources`` to ``targets`` (pairs, H, W, 3), and ``reverse``, as ``images``, from target to source; ``ranges``
    (ranges, 2) int64, half-open, the last one all of z; ``scales`` (scales,) float64; ``indices`` (pairs, 2) int64,
    rows of images_test.npy.
manipulation_<method>.npz (Figures 4.5 to 4.7): ``images`` (attributes, samples, scales, H, W, 3); ``originals``
    (samples, H, W, 3); ``attributes`` (attributes,) names; ``dims`` (attributes,) int64, dimensions of the classifier,
    d for one on all of z; rows in the order of ``--probmask``; ``scales`` (scales,); ``indices`` (samples,).
classifier.safetensors: the attribute classifier on pixels that the numbers are measured by, one for all methods;
    average precisions on the test images in classifier.json.
numbers_<method>.csv: ``dataset,method,seed,measure,subject,attribute,metric,value,images``, one number a row.
"""

from __future__ import annotations
