# SPDX-License-Identifier: Apache-2.0
"""What a run is measured by, real or simulated."""
