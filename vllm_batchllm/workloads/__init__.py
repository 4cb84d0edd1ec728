# SPDX-License-Identifier: Apache-2.0
"""What is compared, by benchmarks and simulations alike."""
