"""How messages travel: one contract, kept by AMQP (RabbitMQ, through pika) and by the embedded broker."""
