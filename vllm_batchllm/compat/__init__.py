# SPDX-License-Identifier: Apache-2.0
"""The border to vLLM: which versions are supported, and how its classes are reached."""
