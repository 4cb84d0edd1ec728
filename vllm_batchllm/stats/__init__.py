# SPDX-License-Identifier: Apache-2.0
"""The counters' whole way, from the scheduler to ``/metrics``."""
