"""meshnode.examples"""
