"""How the service is doing: health for load balancers, status for operators, metrics for Prometheus."""
