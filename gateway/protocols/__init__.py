"""meshnode.gateway.protocols"""
