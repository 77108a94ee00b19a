"""meshnode.gateway"""
