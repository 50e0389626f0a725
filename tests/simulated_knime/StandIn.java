// Stands in for KNIME's executor as what it is, a Java program: takes its user's jobs off the shared queue and does in
// each what a workflow does, and what a sandbox easily breaks: hot code that is compiled, mapped files, native
// libraries, sockets, threads, and files in the home, the workspace, the temp directory, /tmp and a share.

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.DefaultConsumer;
import com.rabbitmq.client.Envelope;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.lang.management.ManagementFactory;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;

public class StandIn {
    static final Map<String, String> ENVIRONMENT = System.getenv();

    public static void main(String[] arguments) throws Exception {
        String user = ENVIRONMENT.get("KNIME_EXECUTOR_RESERVATION").replaceAll("^\\(user = '(.*)'\\)$", "$1");
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(ENVIRONMENT.get("KNIME_EXECUTOR_MSGQ"));
        Channel channel = factory.newConnection().createChannel();
        channel.basicQos(1);
        channel.basicConsume("knime-jobs", false, new DefaultConsumer(channel) {
            @Override
            public void handleDelivery(String consumer, Envelope job, AMQP.BasicProperties properties, byte[] body)
                    throws IOException {
                String text = new String(body, "UTF-8");
                if (!text.contains("\"user\": \"" + user + "\"")) {
                    channel.basicNack(job.getDeliveryTag(), false, true);
                    return;
                }
                String report = work(user, text.replaceAll("^.*\"job\": \"([^\"]*)\".*$", "$1"));
                String results = "knime-executor2serverknime-jobs";
                channel.basicPublish(results, properties.getReplyTo(), null, report.getBytes());
                channel.basicAck(job.getDeliveryTag(), false);
            }
        });
        System.out.println("Java executor of " + user + " is ready");
    }

    static String work(String user, String job) throws IOException {
        double sum = 0;
        for (int i = 0; i < 50_000_000; i++) {
            sum += Math.sqrt(i) % 3;
        }
        Path workspace = Path.of("").toAbsolutePath();
        String home = ENVIRONMENT.get("HOME"), temp = ENVIRONMENT.get("TMPDIR");
        String[] places = {home, workspace.toString(), temp, "/tmp", "/srv/share-java"};
        for (String place : places) {
            Files.writeString(Path.of(place, "java-of-" + user), "written");
        }
        try (RandomAccessFile file = new RandomAccessFile(workspace.resolve("mapped").toFile(), "rw")) {
            MappedByteBuffer mapped = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20);
            mapped.putDouble(0, sum);
            mapped.force();
        }
        long compiled = ManagementFactory.getCompilationMXBean().getTotalCompilationTime();
        return "{\"user\": \"" + user + "\", \"job\": \"" + job + "\", \"pid\": " + ProcessHandle.current().pid() + ", \"compiled_ms\": " + compiled
                + ", \"temporary\": \"" + System.getProperty("java.io.tmpdir") + "\"}";
    }
}
