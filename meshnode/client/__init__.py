"""meshnode.client"""
