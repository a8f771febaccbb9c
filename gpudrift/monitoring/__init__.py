"""What a run tells Prometheus and Grafana: metrics, rules, a history, a dashboard."""
