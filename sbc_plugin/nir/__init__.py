"""NIR files: read as Norse models, compressed, written again; and the integers that a chip wants."""

from sbc_plugin.errors import extra

with extra("norse"):
    from sbc_plugin.core.quantization.integers import Integers
    from sbc_plugin.nir.files import compress_file
    from sbc_plugin.nir.network import Network, NetworkState
    from sbc_plugin.nir.reading import read
    from sbc_plugin.nir.tracing import trace
    from sbc_plugin.nir.weight_integers import integers
    from sbc_plugin.nir.writing import graph_of, write


__all__ = ["Integers", "Network", "NetworkState", "compress_file", "graph_of", "integers", "read", "trace", "write"]
