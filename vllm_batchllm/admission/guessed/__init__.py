# SPDX-License-Identifier: Apache-2.0
"""Rules that decide where lengths of outputs are guessed; nothing else here depends on a guess.

They stand together so that they can be judged, and taken out, as a whole: ``length_prediction.py``
asks for lengths and quantiles, ``limits.py`` for the overcommitment.
"""
