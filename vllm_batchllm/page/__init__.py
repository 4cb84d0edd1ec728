# SPDX-License-Identifier: Apache-2.0
"""Reports as one HTML page that needs nothing but a browser. Knows nothing of benchmarks."""
