# SPDX-License-Identifier: Apache-2.0
"""What a step costs on the machine at hand, measured on the real engine."""
