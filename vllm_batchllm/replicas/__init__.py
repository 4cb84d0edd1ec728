# SPDX-License-Identifier: Apache-2.0
"""One batch over many engines: how it is cut, who takes what next, and the actors that do it."""
