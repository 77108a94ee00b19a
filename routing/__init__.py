"""meshnode.routing"""
