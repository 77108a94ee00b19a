"""meshnode.examples.digits"""
